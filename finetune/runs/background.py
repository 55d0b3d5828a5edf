"""One job at a time, here or in a thread, whose error reaches whoever asks for the next one."""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor


class Worker:
    """Runs jobs one after the other.

    Python waits for a job that still runs when the process ends, unless the process is killed.

    Args:
        in_thread: Whether `run` returns before its job is done.
    """

    def __init__(self, *, in_thread: bool = False) -> None:
        self._in_thread = in_thread
        self._pool: ThreadPoolExecutor | None = None
        self._job: Future[None] | None = None

    def run(self, job: Callable[[], None]) -> None:
        """Run a job, after the one before it is done.

        Raises:
            Exception: what the job before it has raised; or this one, where there is no thread.
        """
        self.wait()
        if not self._in_thread:
            job()
            return
        if self._pool is None:
            self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="saving")
        self._job = self._pool.submit(job)

    def wait(self) -> None:
        """Wait until nothing runs.

        Raises:
            Exception: what the job has raised. It is raised once.
        """
        job, self._job = self._job, None
        if job is not None:
            job.result()

    def close(self) -> None:
        """Wait, and end the thread. A later job gets a new one.

        Raises:
            Exception: what the job has raised.
        """
        try:
            self.wait()
        finally:
            if self._pool is not None:
                self._pool.shutdown()
            self._pool = None
