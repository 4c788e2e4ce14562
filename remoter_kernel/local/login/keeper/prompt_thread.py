"""Puts a keeper's questions to the person here, in a thread: the keeper may take them back."""

from __future__ import annotations

import contextlib
import threading
from typing import TYPE_CHECKING, Any

from remoter_kernel.errors import LoginRefused, RemoterError
from remoter_kernel.local.login.keeper.endpoint import Message, error_to_message, send_message
from remoter_kernel.local.login.prompts import CancellablePrompter, Prompt, Withdrawn
from remoter_kernel.protocol.threads import Thread

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

    from remoter_kernel.local.login.prompts import Prompter


class PromptThread:
    """The question that is open here, if there is one."""

    def __init__(self, connection: Connection, prompter: Prompter | None) -> None:
        self._connection = connection
        self._prompter = prompter
        self._message: Message = {}
        self._withdrawn = threading.Event()
        self._thread: Thread | None = None

    def ask(self, message: Message) -> None:
        """Ask, or say where somebody else is asked; what was open until now is taken back."""
        if message == self._message:  # it stands there already
            return
        self.withdraw()
        self._message, self._withdrawn = message, threading.Event()
        self._thread = Thread(self._run, args=(message, self._withdrawn), name="question")
        self._thread.start()

    def withdraw(self) -> None:
        """Ask no more; what is typed from now on is sent to nobody."""
        self._withdrawn.set()
        self._message = {}
        thread, self._thread = self._thread, None
        if thread and isinstance(self._prompter, CancellablePrompter):
            thread.join()  # its cell, or its terminal, is free by then

    def _run(self, message: Message, withdrawn: threading.Event) -> None:
        try:
            answer = self._answer(message, withdrawn)
        except Withdrawn:
            return
        except LoginRefused as error:
            answer = error_to_message(error)[0]
        except Exception as error:  # noqa: BLE001 - a bug must reach the person, too
            # Its words may hold what was typed.
            answer = error_to_message(RemoterError(f"to ask failed: {type(error).__name__}."))[0]
        if answer:
            with contextlib.suppress(OSError):  # a keeper that is gone asks no more
                send_message(self._connection, {**answer, "number": message.get("number", 0)})

    def _answer(self, message: Message, withdrawn: threading.Event) -> Message:
        """Put it to whoever sits here; nothing: the keeper waits for no answer."""
        prompter = self._prompter
        assert prompter is not None  # noqa: S101 - the keeper was told who may be asked
        more: dict[str, Any] = {}
        if isinstance(prompter, CancellablePrompter):
            if "elsewhere" in message:
                prompter.wait_elsewhere(message["elsewhere"], withdrawn)
            more = {"withdrawn": withdrawn}
        if "elsewhere" in message:
            return {}
        if message["ask"] == "host key":
            key = (message["host"], message["kind"], message["fingerprint"])
            return {"trust": prompter.confirm_host_key(*key, **more).value}
        prompts = [Prompt(text, is_shown=is_shown) for text, is_shown in message["prompts"]]
        answers = prompter.ask(message["host"], prompts, message["instruction"], **more)
        return {"answers": answers}
