"""The proxy that stands in for a bad network: every other proof about one leans on it."""

from __future__ import annotations

import socket
import threading
import time

import psutil
import pytest

from bench.proxy import Proxy


@pytest.fixture
def echo_port():
    """Listen for connections and send back what comes, until the test is over."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        threads = []

        def echo(end):
            with end:
                try:
                    while data := end.recv(1 << 20):
                        end.sendall(data)
                except ConnectionError:
                    pass  # a cut is what some tests are about

        def serve():
            while True:
                try:
                    end, _ = server.accept()
                except OSError:
                    return
                threads.append(threading.Thread(target=echo, args=(end,)))
                threads[-1].start()

        serving = threading.Thread(target=serve)
        serving.start()
        yield server.getsockname()[1]
        server.shutdown(socket.SHUT_RDWR)
    for thread in [serving, *threads]:
        thread.join(10)
        assert not thread.is_alive()


def dial(proxy):
    end = socket.create_connection(("127.0.0.1", proxy.port), timeout=10)
    end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return end


def seconds_of_an_echo(end):
    begun = time.perf_counter()
    end.sendall(b"?")
    assert end.recv(10) == b"?"
    return time.perf_counter() - begun


def seconds_of_much(end, size):
    begun = time.perf_counter()
    sending = threading.Thread(target=end.sendall, args=(bytes(size),))
    sending.start()
    got = 0
    while got < size:
        got += len(end.recv(1 << 20))
    sending.join()
    return time.perf_counter() - begun


def test_an_echo_takes_one_round_trip_and_the_first_pays_for_the_handshake(echo_port):
    with Proxy(echo_port, rtt=0.1) as proxy, dial(proxy) as end:
        assert 0.2 <= seconds_of_an_echo(end) < 0.35
        assert 0.1 <= seconds_of_an_echo(end) < 0.2
        assert (proxy.bytes_up, proxy.bytes_down) == (2, 2)


def test_delay_does_not_limit_how_much_is_under_way(echo_port):
    with Proxy(echo_port, rtt=0.2) as proxy, dial(proxy) as end:
        seconds_of_an_echo(end)
        # One chunk per trip would take 40 trips of 0.1 s.
        assert seconds_of_much(end, 10_000_000) < 2.0


def test_a_narrow_path_takes_as_long_as_its_width_says(echo_port):
    with Proxy(echo_port, bits_per_second=8e6) as proxy, dial(proxy) as end:
        assert 0.9 <= seconds_of_much(end, 1_000_000) < 2.0


def test_a_cut_resets_what_is_open_and_lets_the_next_in(echo_port):
    with Proxy(echo_port) as proxy:
        with dial(proxy) as end:
            seconds_of_an_echo(end)
            assert proxy.cut() == 1
            with pytest.raises(ConnectionResetError):
                end.recv(10)
        with dial(proxy) as end:
            seconds_of_an_echo(end)


def test_nobody_is_let_in_between_refuse_and_welcome(echo_port):
    with Proxy(echo_port) as proxy, dial(proxy) as end:
        seconds_of_an_echo(end)
        proxy.refuse()
        proxy.refuse()
        with pytest.raises(ConnectionRefusedError):
            dial(proxy)
        seconds_of_an_echo(end)  # what is open stays open
        proxy.welcome()
        proxy.welcome()
        with dial(proxy) as another:
            seconds_of_an_echo(another)


def test_a_path_may_become_narrow_and_wide_again(echo_port):
    with Proxy(echo_port) as proxy, dial(proxy) as end:
        proxy.narrow(8e6)
        assert seconds_of_much(end, 1_000_000) > 0.7
        proxy.narrow(0)
        assert seconds_of_much(end, 1_000_000) < 0.7


def test_a_stall_swallows_everything_until_it_ends(echo_port):
    with Proxy(echo_port) as proxy, dial(proxy) as end:
        seconds_of_an_echo(end)
        proxy.stall()
        end.sendall(b"!")
        end.settimeout(0.3)
        with pytest.raises(TimeoutError):
            end.recv(10)
        proxy.resume()
        end.settimeout(10)
        assert end.recv(10) == b"!"


def test_a_path_that_vanished_answers_no_dial_until_it_is_back(echo_port):
    with Proxy(echo_port) as proxy, dial(proxy) as end:
        proxy.vanish()
        with pytest.raises(TimeoutError):
            socket.create_connection(("127.0.0.1", proxy.port), timeout=0.5)
        end.sendall(b"!")
        end.settimeout(0.3)
        with pytest.raises(TimeoutError):
            end.recv(10)
        proxy.resume()
        end.settimeout(10)
        assert end.recv(10) == b"!"
        with dial(proxy) as another:
            seconds_of_an_echo(another)


def test_an_end_is_handed_on(echo_port):
    with Proxy(echo_port) as proxy, dial(proxy) as end:
        end.sendall(b"last words")
        end.shutdown(socket.SHUT_WR)
        assert end.recv(100) == b"last words"
        assert end.recv(100) == b""


def test_nothing_is_left_of_a_closed_proxy(echo_port):
    with Proxy(echo_port) as proxy, dial(proxy) as end:
        seconds_of_an_echo(end)
        child = psutil.Process(proxy.pid)
    assert not child.is_running()
    with pytest.raises(ConnectionRefusedError):
        dial(proxy)
