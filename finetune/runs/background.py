"""Run one job at a time, in a thread if asked; its error is raised at the next call."""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait


class Worker:
    """Runs jobs one after another, at once or in a thread.

    At the end of the process Python waits for a job that still runs, unless it is killed.

    Args:
        in_thread: Whether `run` returns before the job is done.
    """

    def __init__(self, *, in_thread: bool = False) -> None:
        self._in_thread = in_thread
        self._pool: ThreadPoolExecutor | None = None
        self._job: Future[None] | None = None

    def run(self, job: Callable[[], None]) -> None:
        """Wait for the job before, then run this one, or start it in the thread.

        Raises:
            Exception: the error of the job before; or of this one, if there is no thread.
        """
        self.wait()
        if not self._in_thread:
            job()
            return
        if self._pool is None:
            # One worker: checkpoints must appear in the order in which they were saved.
            self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="saving")
        self._job = self._pool.submit(job)

    def wait(self) -> None:
        """Wait until no job runs.

        Raises:
            Exception: the error of the job. It is raised once.
        """
        # Taken out first, so that a failed job does not raise again when the run closes.
        job, self._job = self._job, None
        if job is not None:
            job.result()

    def settle(self) -> None:
        """Wait until no job runs; an error of it is raised by the next call, not by this one."""
        if self._job is not None:
            wait([self._job])

    def close(self) -> None:
        """Wait for the job, then end the thread; a later `run` starts a new one.

        Raises:
            Exception: the error of the job.
        """
        try:
            self.wait()
        finally:
            if self._pool is not None:
                self._pool.shutdown()
            self._pool = None
