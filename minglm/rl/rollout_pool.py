"""Groups in flight and the workers that decode them. Torch-free.

What it holds survives a worker: one that dies is started again and gets its requests again, with the tokens that had
come back before.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

from minglm.rl.config import Settings
from minglm.rl.data_source import Group, Sample
from minglm.rl.messages import Abort, RolloutRequest, RolloutResult, Submit
from minglm.rl.supervisor import WorkerHandle


class RolloutPool:
    """The rollout workers of a run.

    Args:
        now: seconds since the run began.
    """

    def __init__(self, settings: Settings, workers: Sequence[WorkerHandle], now: Callable[[], float]) -> None:
        self.settings, self.workers, self.now = settings, workers, now
        self.in_flight: dict[int, Group] = {}  # by index, in order of submission
        self.aborting: set[str] | None = None  # names of the workers whose partial groups are awaited

    def versions(self) -> Counter[int]:
        """Groups in flight by the version at which they were started."""
        return Counter(group.version for group in self.in_flight.values())

    # ------------------------------------------------------------------ out

    def submit(self, group: Group) -> None:
        """Hand a group to the worker with the fewest."""
        self.in_flight[group.index] = group
        worker = min(self.workers, key=lambda w: len(w.groups))
        worker.groups.add(group.index)
        self._send(worker, group)

    def _send(self, worker: WorkerHandle, group: Group) -> None:
        now, requests = self.now(), []
        for k, sample in enumerate(group.samples):
            if not sample.done:
                sample.begin_segment(now)
                requests.append(
                    RolloutRequest(
                        id=f"{group.index}.{k}",
                        prompt=group.prompt,
                        seed=self.settings.sample_seed(group.index, k),
                        tokens=sample.tokens,
                        logprobs=sample.logprobs,
                        versions=sample.versions,
                        routes=sample.routes,
                    )
                )
        if requests:
            worker.send(Submit(tuple(requests)))

    # ------------------------------------------------------------------ back

    def receive(self, worker: WorkerHandle, result: RolloutResult) -> tuple[Group, int, Sample, int] | None:
        """Put what came back into its sample: (group, index of the sample in it, sample, new tokens); None for what
        nobody waits for any more."""
        index, k = map(int, result.id.split("."))
        group = self.in_flight.get(index)
        if group is None or group.samples[k].done:
            return None
        sample = group.samples[k]
        new_tokens = len(result.tokens) - len(sample.tokens)
        worker.undelivered_tokens -= new_tokens
        sample.tokens, sample.logprobs, sample.versions = result.tokens, result.logprobs, result.versions
        sample.routes, sample.reason = result.routes, result.reason
        sample.end_segment(self.now())
        return group, k, sample, new_tokens

    def remove(self, group: Group) -> None:
        """A group is complete."""
        del self.in_flight[group.index]
        for worker in self.workers:
            worker.groups.discard(group.index)

    # ------------------------------------------------------------------ abort

    def abort(self) -> None:
        """Stop everything; the workers give back what they have."""
        self.aborting = {worker.name for worker in self.workers}
        for worker in self.workers:
            worker.send(Abort())

    def aborted(self, worker: WorkerHandle) -> list[Group] | None:
        """A worker has given back all it had: the unfinished groups once the last has, None before."""
        if self.aborting is None:
            return None
        self.aborting.discard(worker.name)
        if self.aborting:
            return None
        self.aborting = None
        groups, self.in_flight = list(self.in_flight.values()), {}
        for one in self.workers:
            one.groups.clear()
        return groups

    # ------------------------------------------------------------------ faults

    def unfinished(self, worker: WorkerHandle) -> tuple[list[Group], list[Sample]]:
        """(groups, samples in them) that a lost worker was decoding; their open segments are dropped."""
        groups = [group for group in self.in_flight.values() if group.index in worker.groups]
        samples = [sample for group in groups for sample in group.samples if not sample.done]
        for sample in samples:
            sample.drop_open_segment()
        return groups, samples

    def resubmit(self, worker: WorkerHandle, groups: Sequence[Group]) -> None:
        """Send these again to the worker that had them."""
        for group in groups:
            self._send(worker, group)
