"""What a report says where the remote could not be asked."""

from __future__ import annotations

from remoter_kernel.local.config.remotes import Remote
from remoter_kernel.local.history import fault_report as reports
from remoter_kernel.local.login.login_errors import connection_timed_out


def test_the_words_of_a_server_are_not_in_it(monkeypatch):
    """They may be a code with which somebody logs in."""

    class Visit:
        def __init__(self, *_words):
            pass

        def open(self):
            raise connection_timed_out("gpu", "login", said="enter the code 771")

        def close(self):
            pass

    monkeypatch.setattr(reports, "RemoteQuery", Visit)
    report = reports.Report()
    reports.report_far_side(report, Remote("gpu", "gpu"), None)
    text = report.text()
    assert "Unreachable" in text
    assert "fell silent during the step" in text
    assert "Look at the network or VPN" in text
    assert "771" not in text
