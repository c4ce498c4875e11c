"""In this process, one step after the other: `submit` returns when the work is done."""

from __future__ import annotations

from concurrent.futures import Future

from palimpsest.progress import Progress
from palimpsest.study.work import Outcome, Task, Workshop

NAME = "here"


class SerialExecutor:
    """One worker, this process. progress: where methods report how far they are, or None for the context's."""

    together = False

    def __init__(self, workshop: Workshop, progress: Progress | None = None) -> None:
        self.workshop, self.progress = workshop, progress

    def free(self) -> list[str]:
        """This process."""
        return [NAME]

    def submit(self, worker: str, piece: tuple[Task, ...]) -> Future[list[Outcome]]:
        """Do it now. An interruption goes through, with nothing half-written left."""
        future: Future[list[Outcome]] = Future()
        try:
            future.set_result([self.workshop.do(task, self.progress) for task in piece])
        except Exception as error:
            future.set_exception(error)
        return future

    def cancel(self) -> None:
        """Nothing runs beside the caller."""
        self.workshop.let_go()

    def shutdown(self) -> None:
        """Let go of the loaded model."""
        self.workshop.let_go()
