"""An honest engine at the native door, beside the clients of lmcache's."""

from __future__ import annotations

from typing import Any

from tests.faults.campaign.honest import Honest
from tests.faults.campaign.prompts import CHUNKS
from tests.support.native import Engine


class NativeMode(Honest):
    """One engine of one rank. Its objects have numbers, and the numbers their bytes."""

    model, instance = "honest-native", 0

    def __init__(self, url: str, seed: int) -> None:
        super().__init__(url, seed)
        self._engine = Engine(url, model=self.model)
        self._engine.client.close()
        self._engine.client = self.client
        self.register()

    def register(self) -> None:
        for member in self._engine.members:
            member.start()
        assert self._engine.attach()["ready"]
        self._engine.call = self._call  # type: ignore[method-assign]

    def leave(self) -> None:
        self._call("detach")
        for member in self._engine.members:
            member.end_process()

    def warm_up(self) -> None:
        for number in range(20):
            self.one_request(number)

    def one_request(self, number: int) -> None:
        request = f"{self.model}-{self.random.random()}"
        member = self._engine.members[0]
        for client, ask in (
            (self.client, {"session": self._engine.session}),
            (member.client, {"member": member.joined["member"]}),
        ):
            told = self.ask_over(client, "native_ping", ask)
            if not (told["known"] and told["ready"]):
                self.sum.problems.append(f"forgotten: {ask}")
        wanted = [number * CHUNKS + chunk for chunk in range(CHUNKS)]
        found = self._engine.find(request, *wanted)
        hits = sum(slot >= 0 for slot in found)
        self.sum.chunks += hits
        self._engine.finish(request)
        if hits < CHUNKS:
            slots = self._engine.reserve(CHUNKS - hits)
            if len(slots) < CHUNKS - hits:
                self.sum.refusals.append("slots were refused")
            for slot, each in zip(slots, wanted[hits:], strict=False):
                self._engine.write(slot, each)
            if self._engine.publish(request, wanted[hits : hits + len(slots)], slots) < len(slots):
                self.sum.refusals.append("a publication was refused")

    def _call(self, operation: str, **ask: Any) -> Any:
        return self.ask(f"native_{operation}", {"session": self._engine.session, **ask})
