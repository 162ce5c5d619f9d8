"""Sagas over one bank, each with a flaw that only shows when two of them run at the same time, and sound ones."""

from __future__ import annotations

from typing import Any

from sagaz_core import Saga, StepRejected, action, compensate


class Bank:
    def __init__(self, **balances: int) -> None:
        self.balances = balances
        self.locks: dict[str, str] = {}
        self.offers: dict[str, str] = {}
        self.done: dict[str, int] = {}


class OfBank(Saga):
    def __init__(self, bank: Bank) -> None:
        super().__init__()
        self.bank = bank


class StaleWithdraw(OfBank):
    """Writes what it has read in another step."""

    saga_name = "stale"

    @action("look")
    async def look(self, ctx: Any) -> dict[str, Any]:
        return {"seen": self.bank.balances["joint"]}

    @action("take", in_doubt="compensate")
    async def take(self, ctx: Any) -> None:
        self.bank.balances["joint"] = ctx["seen"] - ctx["amount"]
        self.bank.done[ctx["who"]] = ctx["amount"]

    @compensate("take")
    async def give_back(self, ctx: Any) -> None:
        self.bank.balances["joint"] += self.bank.done.pop(ctx["who"], 0)


class Withdraw(StaleWithdraw):
    """Takes from what is there."""

    saga_name = "withdraw"

    @action("take", in_doubt="compensate")
    async def take(self, ctx: Any) -> None:
        self.bank.balances["joint"] -= ctx["amount"]
        self.bank.done[ctx["who"]] = ctx["amount"]

    @action("report")
    async def report(self, ctx: Any) -> None:
        pass


class AbsoluteUndo(Withdraw):
    """Puts the balance back to what it was, whoever has changed it since."""

    saga_name = "absolute-undo"

    @action("take")
    async def take(self, ctx: Any) -> dict[str, Any]:
        seen = self.bank.balances["joint"]
        self.bank.balances["joint"] = seen - ctx["amount"]
        return {"was": seen}

    @compensate("take")
    async def give_back(self, ctx: Any) -> None:
        self.bank.balances["joint"] = ctx["was"]


class Upgrade(OfBank):
    """Makes a customer a gold one, before the fee is paid."""

    saga_name = "upgrade"

    @action("make_gold", in_doubt="compensate")
    async def make_gold(self, ctx: Any) -> None:
        self.bank.locks["joint"] = "gold"

    @compensate("make_gold")
    async def make_plain(self, ctx: Any) -> None:
        self.bank.locks.pop("joint", None)

    @action("pay_fee")
    async def pay_fee(self, ctx: Any) -> None:
        raise StepRejected("no money")


class Offer(OfBank):
    """Offers more to gold customers."""

    saga_name = "offer"

    @action("offer", in_doubt="compensate")
    async def offer(self, ctx: Any) -> None:
        self.bank.offers["joint"] = "loan" if self.bank.locks.get("joint") == "gold" else "card"

    @compensate("offer")
    async def withdraw_offer(self, ctx: Any) -> None:
        self.bank.offers.pop("joint", None)


class LateUpgrade(OfBank):
    """Pays the fee first."""

    saga_name = "late-upgrade"

    @action("pay_fee")
    async def pay_fee(self, ctx: Any) -> None:
        raise StepRejected("no money")

    @action("make_gold", in_doubt="compensate")
    async def make_gold(self, ctx: Any) -> None:
        self.bank.locks["joint"] = "gold"

    @compensate("make_gold")
    async def make_plain(self, ctx: Any) -> None:
        self.bank.locks.pop("joint", None)


class Locked(OfBank):
    """Holds a lock while it looks and takes; whoever finds it held gives up."""

    saga_name = "locked"

    @action("lock", in_doubt="compensate")
    async def lock(self, ctx: Any) -> None:
        if self.bank.locks.setdefault("joint", ctx["who"]) != ctx["who"]:
            raise StepRejected("somebody has it")

    @compensate("lock")
    async def unlock(self, ctx: Any) -> None:
        if self.bank.locks.get("joint") == ctx["who"]:
            del self.bank.locks["joint"]

    @action("look")
    async def look(self, ctx: Any) -> dict[str, Any]:
        return {"seen": self.bank.balances["joint"]}

    @action("take", in_doubt="compensate")
    async def take(self, ctx: Any) -> None:
        self.bank.balances["joint"] = ctx["seen"] - ctx["amount"]
        self.bank.done[ctx["who"]] = ctx["amount"]

    @compensate("take")
    async def give_back(self, ctx: Any) -> None:
        self.bank.balances["joint"] += self.bank.done.pop(ctx["who"], 0)

    @action("release")
    async def release(self, ctx: Any) -> None:
        await self.unlock(ctx)


class KeepsLock(Locked):
    """Forgets the lock when it is undone."""

    saga_name = "keeps-lock"

    @compensate("lock")
    async def unlock(self, ctx: Any) -> None:
        pass

    @action("release")
    async def release(self, ctx: Any) -> None:
        del self.bank.locks["joint"]
