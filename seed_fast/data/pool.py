"""Worker processes that map a function over a stream, in order, with bounded memory and bounded time for each item.

The caller puts chunks of items into a queue (`_Line`); one thread per worker process takes them from it, sends them,
and puts the answers back one by one (`worker` is the other side). A watch kills a worker whose item takes too long.
"""

from __future__ import annotations

import queue
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import suppress
from typing import Any, Generic, NamedTuple, TypeVar

from seed_fast.data.worker import BEGUN, Process, WorkerDied
from seed_fast.limits import IN_FLIGHT_BYTES, ITEM_SECONDS

__all__ = ["CHUNK", "Pool", "WorkerDied"]

CHUNK = 8  # images per message to a worker: few messages, and a worker is never far behind the others
CHUNK_BYTES = 4 << 20  # most content of the items in one message; a larger item is sent alone
MOST_STUCK = 4  # threads that may be busy with items given up, where there are no workers to kill

Item = TypeVar("Item")
Result = TypeVar("Result")


class Answer(NamedTuple):
    """The outcome of an item: a result, or the exception that the function raised."""

    is_result: bool
    value: Any


class Job(NamedTuple, Generic[Item, Result]):
    """The work to do with every item of a stream; `Pool.map` explains the fields."""

    function: Callable[[Item], Result]
    name: Callable[[Item], str]
    size: Callable[[Item], int] | None
    too_slow: Callable[[Item, float], Result] | None


class Pool:
    """A pool of `workers` processes; with 0 workers the caller's process does the work.

    Args:
        workers: number of processes.
        ahead: number of items that may be done before they are asked for, which bounds the memory for results.
        ahead_bytes: bytes of content (`size` of `map`) that may be on the way to workers at a time, which bounds the
            memory for inputs. A larger item is sent when no other is on its way.
        seconds_per_item: time limit of an item in s, for a `map` with `too_slow`. Time in which this process was
            suspended, and the start of a worker, don't count.
    """

    def __init__(
        self,
        workers: int,
        ahead: int,
        *,
        ahead_bytes: int = IN_FLIGHT_BYTES,
        seconds_per_item: float = ITEM_SECONDS,
    ) -> None:
        self._window = CHUNK * max(1, -(-ahead // CHUNK), 2 * workers)  # items
        self._ahead_bytes, self._seconds = ahead_bytes, seconds_per_item
        self._line = _Line()
        self._clock = _Clock(seconds_per_item)
        self._hands = [_Hand(self._line, seconds_per_item, self._clock) for _ in range(workers)]
        self._threads: list[threading.Thread] = []
        self._close = weakref.finalize(self, _end, self._line, self._hands)
        self.waiting_seconds = 0.0  # time for which the caller has waited for workers

    @property
    def pids(self) -> list[int]:
        """Process ids of the workers that run now; each starts when there is work for it."""
        return [pid for hand in self._hands if (pid := hand.pid) is not None]

    def close(self) -> None:
        """End the workers, and drop what they are doing."""
        self._close()
        for thread in self._threads:
            thread.join(timeout=10)

    def map(
        self,
        function: Callable[[Item], Result],
        items: Iterable[Item],
        name: Callable[[Item], str],
        *,
        size: Callable[[Item], int] | None = None,
        too_slow: Callable[[Item, float], Result] | None = None,
    ) -> Generator[Result, None, None]:
        """Yield the results of `function` in the order of `items`, which is read only as far ahead as `ahead` allows.

        Args:
            function: the work for one item; must be picklable if there are workers. Its exceptions are raised here.
            items: the items; must be picklable too.
            name: gives the name of an item for errors.
            size: bytes of content that an item holds in memory; default: none.
            too_slow: gives the result of an item that has exceeded its limit, from the item and the limit in seconds;
                the worker is killed and replaced. Without `too_slow` an item may take for ever. With 0 workers a thread
                of this process works, which nothing can end: it is left behind with such an item.

        Raises:
            WorkerDied: while iterating, when a worker could not be started, was killed (out of memory?) or crashed in a
                decoder; with 0 workers when `MOST_STUCK` threads have been left behind and none has come to an end.
        """
        job = Job(function, name, size, too_slow)
        if self._hands:
            yield from self._map(job, iter(items))
        elif too_slow is None:
            yield from map(function, items)
        else:
            yield from _map_alone(job, items, self._seconds)

    def _map(self, job: Job[Item, Result], items: Iterator[Item]) -> Generator[Result, None, None]:
        self._start()
        source = _Source(job, items)
        chunks: deque[_Chunk[Item, Result]] = deque()  # submitted, and not yet given to the caller to the end
        try:
            while True:
                # Send the workers as many items as the bounds on number and memory allow.
                ahead = sum(chunk.expected for chunk in chunks)
                while ahead + CHUNK <= self._window:
                    chunk = source.draw(self._ahead_bytes - self._line.content, must=not chunks)
                    if chunk is None:
                        break
                    self._line.put(chunk)
                    chunks.append(chunk)
                    ahead += chunk.expected
                if not chunks:
                    return
                # Wait for the next answer in the order of the items.
                start = time.perf_counter()
                answer = self._line.answer_of(chunks[0])
                self.waiting_seconds += time.perf_counter() - start
                if not chunks[0].expected:
                    chunks.popleft()
                if not answer.is_result:
                    raise answer.value
                yield answer.value
        finally:  # the caller may have left early
            self._line.drop(chunks)

    def _start(self) -> None:
        if self._threads:
            return
        self._threads = [threading.Thread(target=hand.run, daemon=True) for hand in self._hands]
        self._threads.append(threading.Thread(target=_watch, args=(self._line, self._hands, self._clock), daemon=True))
        for thread in self._threads:
            thread.start()


class _Chunk(Generic[Item, Result]):
    """The items of one message to a worker, and their answers."""

    def __init__(self, job: Job[Item, Result], items: list[Item], sizes: list[int]) -> None:
        self.job = job
        self.items, self.sizes = deque(items), deque(sizes)  # without an answer
        self.answers: deque[Answer] = deque()  # not yet given to the caller
        self.is_wanted = True

    @property
    def expected(self) -> int:
        """Number of answers that the caller has not been given yet."""
        return len(self.items) + len(self.answers)

    @property
    def bytes(self) -> int:
        """Bytes of content of the items that have no answer yet."""
        return sum(self.sizes)

    @property
    def message(self) -> tuple[Callable[[Item], Result], list[Item]]:
        """The message that a worker gets: the function and the items."""
        return self.job.function, list(self.items)


class _Source(Generic[Item, Result]):
    """Cuts a stream of items into chunks, as far as memory is allowed for their content."""

    def __init__(self, job: Job[Item, Result], items: Iterator[Item]) -> None:
        self._job, self._items = job, items
        self._drawn: list[tuple[Item, int]] = []  # the next item, where it was read before there was room for it

    def draw(self, room: int, *, must: bool) -> _Chunk[Item, Result] | None:
        """Return the next chunk of at most `room` bytes, or of one larger item if it `must` be; None at the end."""
        items: list[Item] = []
        sizes: list[int] = []
        while len(items) < CHUNK and (self._drawn or self._draw_one()):
            item, size = self._drawn[0]
            total = sum(sizes) + size
            if (total > room and (items or not must)) or (items and total > CHUNK_BYTES):
                break
            items.append(item)
            sizes.append(size)
            self._drawn.clear()
        return _Chunk(self._job, items, sizes) if items else None

    def _draw_one(self) -> bool:
        for item in self._items:
            self._drawn.append((item, self._job.size(item) if self._job.size else 0))
            return True
        return False


class _Line:
    """The queue between the caller and the threads that feed the workers: chunks to do, and answers in order."""

    def __init__(self) -> None:
        self.changed = threading.Condition()
        self.closing = threading.Event()
        self.content = 0  # bytes of items that were put in and have no answer
        self._waiting: deque[_Chunk[Any, Any]] = deque()
        self._failure: WorkerDied | None = None

    @property
    def is_closed(self) -> bool:
        return self.closing.is_set()

    def put(self, chunk: _Chunk[Any, Any]) -> None:
        """Queue a chunk for the workers."""
        with self.changed:
            self._waiting.append(chunk)
            self.content += chunk.bytes
            self.changed.notify_all()

    def take(self, *, wait: bool, most_bytes: int | None = None) -> _Chunk[Any, Any] | None:
        """Return the next chunk to do; None if there is none now or, with `wait`, if there will be none."""
        with self.changed:
            while wait and not self._waiting and not self.is_closed:
                self.changed.wait()
            if self.is_closed or not self._waiting:
                return None
            if most_bytes is not None and self._waiting[0].bytes > most_bytes:
                return None
            return self._waiting.popleft()

    def answer(self, chunk: _Chunk[Any, Any], answer: Answer) -> None:
        """Put the answer to the next item of a chunk."""
        with self.changed:
            chunk.items.popleft()
            self.content -= chunk.sizes.popleft()
            if chunk.is_wanted:
                chunk.answers.append(answer)
            self.changed.notify_all()

    def answer_of(self, chunk: _Chunk[Any, Any]) -> Answer:
        """Wait for the next answer of a chunk and return it.

        Raises:
            WorkerDied: the worker that had it is dead.
        """
        with self.changed:
            while not chunk.answers:
                if self._failure is not None:
                    raise self._failure
                self.changed.wait()
            return chunk.answers.popleft()

    def fail(self, error: WorkerDied) -> None:
        """Tell the caller that a worker is dead."""
        with self.changed:
            self._failure = self._failure or error
            self.changed.notify_all()

    def drop(self, chunks: Iterable[_Chunk[Any, Any]]) -> None:
        """Drop chunks whose answers are no longer wanted."""
        with self.changed:
            for chunk in chunks:
                chunk.is_wanted = False
                chunk.answers.clear()
                if chunk in self._waiting:
                    self._waiting.remove(chunk)
                    self.content -= chunk.bytes

    def close(self) -> None:
        """Close the line, so that the threads of the workers end."""
        with self.changed:
            self.closing.set()
            self._failure = self._failure or WorkerDied("the workers were ended by their owner")
            self.changed.notify_all()


class _Clock:
    """A clock of the seconds since it was made, without those in which this process was suspended."""

    def __init__(self, seconds: float) -> None:
        self.now = 0.0
        self.step = min(1.0, seconds / 4)
        self._seen = time.monotonic()

    def tick(self) -> None:
        """Move the clock on; must be called about every `step` seconds."""
        seen = time.monotonic()
        self.now += min(seen - self._seen, 2 * self.step)
        self._seen = seen


class _Hand:
    """A worker process, and the thread that feeds it.

    A second chunk is sent while the worker is busy with the first, so that it doesn't wait for this process.
    """

    def __init__(self, line: _Line, seconds: float, clock: _Clock) -> None:
        self._line, self._seconds, self._clock = line, seconds, clock
        self._lock = threading.Lock()  # guards the fields below, which the watch thread and `kill` read
        self._process: Process | None = None
        self._began: float | None = None  # the item in hand, if it has a time limit
        self._is_given_up = False  # the item in hand has taken too long, and the process was killed
        self._sent: deque[_Chunk[Any, Any]] = deque()  # to the process, the oldest first

    @property
    def pid(self) -> int | None:
        process = self._process
        return None if process is None else process.pid

    def run(self) -> None:
        """Do chunks until the line is closed. An exception here ends the caller's run."""
        try:
            while (chunk := self._line.take(wait=True)) is not None:
                self._sent.append(chunk)
                if self._process is None:
                    self._start()
                else:
                    self._process.send(chunk.message)
                while self._sent and not self._line.is_closed:
                    self._one_answer()
        except WorkerDied as error:
            self._line.fail(error)
        except Exception as error:  # noqa: BLE001 - such as an item that can't be pickled
            self._line.fail(WorkerDied(f"a decoding worker can't be used: {type(error).__name__}: {error}"))
        finally:
            self.kill()
            self._end()

    def kill(self) -> None:
        """Kill the worker process, if there is one."""
        with self._lock:
            if self._process is not None:
                self._process.kill()

    def give_up_if_late(self) -> None:
        """Kill the process if its item has taken too long."""
        with self._lock:
            # The item began up to a step after the clock said so.
            if self._began is not None and self._clock.now - self._began > self._seconds + self._clock.step:
                self._began, self._is_given_up = None, True
                self._process.kill()  # type: ignore[union-attr]

    def _start(self) -> None:
        """Start a worker process, and send it the chunks that it has to do."""
        with self._lock:
            self._process = Process()
        if self._line.is_closed:  # since before there was a process to kill
            self._process.kill()
        self._process.wait_until_ready()
        for chunk in self._sent:
            self._process.send(chunk.message)

    def _end(self) -> str:
        with self._lock:
            process, self._process, self._began = self._process, None, None
        return process.end() if process is not None else ""

    def _begin(self, chunk: _Chunk[Any, Any]) -> None:
        """Start the time limit of the next item of a chunk."""
        if chunk.items and chunk.job.too_slow is not None:
            with self._lock:
                self._began = self._clock.now

    def _one_answer(self) -> None:
        # Either the worker has begun an item, or it answers one, or it is dead.
        chunk = self._sent[0]
        answer = self._process.receive()  # type: ignore[union-attr]
        if answer == BEGUN:
            self._begin(chunk)
            return
        with self._lock:
            was_given_up, self._is_given_up, self._began = self._is_given_up, False, None
        # A worker that was killed for being late gives an error of its item; any other death ends the run.
        if answer is None and not was_given_up:
            how = self._end() or "killed"
            raise WorkerDied(f"a decoding worker died at {chunk.job.name(chunk.items[0])} or soon after: {how}")
        if answer is None:
            assert chunk.job.too_slow is not None  # only a job with it is given up
            answer = (True, chunk.job.too_slow(chunk.items[0], self._seconds))
        # Pass the answer on; a killed worker is replaced, a living one gets its next chunk.
        self._line.answer(chunk, Answer(*answer))
        if not chunk.items:
            self._sent.popleft()
        if was_given_up:
            self._end()
            if self._sent:
                self._start()
            return
        self._begin(chunk)
        following = self._line.take(wait=False, most_bytes=CHUNK_BYTES) if len(self._sent) == 1 else None
        if following is not None:
            self._sent.append(following)
            self._process.send(following.message)  # type: ignore[union-attr]


def _watch(line: _Line, hands: list[_Hand], clock: _Clock) -> None:
    """Look regularly at every worker, and kill those whose item has taken too long."""
    while not line.closing.wait(clock.step):
        clock.tick()
        for hand in hands:
            hand.give_up_if_late()


def _end(line: _Line, hands: list[_Hand]) -> None:
    line.close()
    for hand in hands:
        hand.kill()


class _Companion:
    """A thread that does items one by one, so that the caller can wait for each with a limit."""

    def __init__(self, function: Callable[[Any], Any]) -> None:
        self._items: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._answers: queue.SimpleQueue[Answer] = queue.SimpleQueue()
        self._thread = threading.Thread(target=_do, args=(function, self._items, self._answers), daemon=True)
        self._thread.start()

    @property
    def is_alive(self) -> bool:
        return self._thread.is_alive()

    def answer(self, item: Any, seconds: float) -> Answer | None:
        """Return the answer to an item; None if it takes longer than `seconds`."""
        clock = _Clock(seconds)
        self._items.put((item,))
        while clock.now < seconds:
            with suppress(queue.Empty):
                return self._answers.get(timeout=clock.step)
            clock.tick()
        return None

    def dismiss(self) -> None:
        """Let the thread end after its present item."""
        self._items.put(None)


def _do(function: Callable[[Any], Any], items: queue.SimpleQueue[Any], answers: queue.SimpleQueue[Answer]) -> None:
    while (boxed := items.get()) is not None:
        try:
            answers.put(Answer(True, function(*boxed)))
        except BaseException as error:  # noqa: BLE001 - raised again by the caller
            answers.put(Answer(False, error))


def _map_alone(job: Job[Item, Result], items: Iterable[Item], seconds: float) -> Generator[Result, None, None]:
    """Yield the results of a job that this process does itself, without workers."""
    stuck: list[_Companion] = []
    companion = _Companion(job.function)
    try:
        for item in items:
            answer = companion.answer(item, seconds)
            if answer is not None:
                if not answer.is_result:
                    raise answer.value
                yield answer.value
                continue
            companion.dismiss()
            stuck = [each for each in [*stuck, companion] if each.is_alive]
            if len(stuck) >= MOST_STUCK:
                raise WorkerDied(
                    f"{job.name(item)}: the last of {len(stuck)} images that this process is still decoding after "
                    f"{seconds:g} s and more; with a worker process such an image can be ended and skipped"
                )
            companion = _Companion(job.function)
            yield job.too_slow(item, seconds)  # type: ignore[misc]
    finally:
        companion.dismiss()
