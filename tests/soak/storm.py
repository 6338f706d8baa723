"""A kill -9 storm over one ledger, with an append-only log of what was billed as the truth.

    python -m tests.soak.storm --ledger sqlite --kills 1000 --seconds 600

Workers hold, bill and settle as fast as they can and are killed at any instant, while another process sweeps
holds past their lease. Prints a report as JSON; the exit code says whether everything held.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import os
import random
import signal
import sys
import tempfile
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

from graphguard.budget import Call, Claim
from graphguard.ledger import Hold, Ledger, SqliteLedger
from graphguard.spend import Charge, Spend

WORKERS = 4
THREADS = 3
LIMIT = 3_000
WORST = 10
LEASE = 0.3

Opening = Callable[..., SqliteLedger]


@dataclass
class Report:
    """What a storm did, and what it found."""

    ledger: str
    kills: int = 0
    seconds: float = 0.0
    billed: int = 0
    settled_by_workers: int = 0
    swept: int = 0
    accounts: int = 0
    full_accounts: int = 0
    problems: list[str] = field(default_factory=list)


def claims(number: int) -> tuple[Claim, ...]:
    """Give a call's two accounts: a small one, and one that all share."""
    return (
        Claim(budget="job", scope=f"job:{number}", limits={"usd": LIMIT}),
        Claim(budget="all", scope="all", limits={"usd": 10**15}),
    )


def work(opening: Opening, log: Path, first: int) -> None:
    """Hold, bill, settle until killed; goes on to the next account when one is full."""
    ledger = opening(lease=LEASE, wait=0.0)
    target = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    numbers = itertools.count()

    def one_thread(seed: int) -> None:
        chance = random.Random(seed)
        account = first
        while True:
            call = Call(
                id=f"{os.getpid()}-{seed}-{next(numbers)}-{time.monotonic_ns()}",
                worst=Spend(nanousd=WORST, calls=1),
                claims=claims(account),
            )
            if not isinstance(ledger.hold(call), Hold):
                account += 1
                continue
            billed = chance.choice((0, 3, WORST, WORST))
            if chance.random() < 0.1:  # the provider answered that it was busy
                ledger.release(call.id)
                continue
            os.write(target, f"{call.id} {account} {billed}\n".encode())
            ledger.settle(call.id, true_charge(call.id, account, billed))

    threads = [threading.Thread(target=one_thread, args=(os.getpid() * 10 + n,), daemon=True) for n in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def true_charge(id_: str, account: int, billed: int) -> Charge:
    """Give what a call really cost."""
    return Charge(id=id_, nanousd=billed, scopes=(f"job:{account}", "all"))


def keep_sweeping(opening: Opening, _log: Path, _first: int) -> None:
    """Charge what the dead have left, again and again."""
    ledger = opening(lease=LEASE)
    pause = threading.Event()
    while True:
        ledger.sweep()
        pause.wait(0.05)


def forked(job: Callable[[Opening, Path, int], None], opening: Opening, log: Path, first: int) -> int:
    """Run a job in a child that never comes back here."""
    if pid := os.fork():
        return pid
    code = 1
    try:
        job(opening, log, first)
    except BaseException as error:  # noqa: BLE001 - whatever it is, the report must have it
        os.write(2, f"worker: {error!r}\n".encode())
    finally:
        os._exit(code)


def kill(pid: int) -> bool:
    """Kill a child with -9; whether it was alive until then."""
    os.kill(pid, signal.SIGKILL)
    _, status = os.waitpid(pid, 0)
    return os.WIFSIGNALED(status)


def storm(opening: Opening, log: Path, report: Report, *, kills: int, seconds: float) -> None:
    """Kill and replace workers until enough were killed or the time is over."""
    chance = random.Random()
    begun = time.monotonic()
    sweeper = forked(keep_sweeping, opening, log, 0)
    pids = [forked(work, opening, log, 0) for _ in range(WORKERS)]
    pause = threading.Event()
    while report.kills < kills and time.monotonic() - begun < seconds:
        pause.wait(chance.choice((0.002, 0.01, 0.03, 0.08)))
        at = chance.randrange(WORKERS)
        if not kill(pids[at]):
            report.problems.append("a worker ended by itself")
        report.kills += 1
        pids[at] = forked(work, opening, log, report.kills // 20)
    for pid in [*pids, sweeper]:
        kill(pid)
    report.seconds = round(time.monotonic() - begun, 1)


def read(log: Path) -> dict[int, Counter[str]]:
    """Give what was billed, by account and call."""
    billed: defaultdict[int, Counter[str]] = defaultdict(Counter)
    for line in log.read_text().splitlines():
        id_, account, amount = line.split()
        billed[int(account)][id_] += int(amount)
    return billed


def account_of(charge: Charge) -> int:
    """Give the number of a charge's own account."""
    return next(int(scope.removeprefix("job:")) for scope in charge.scopes if scope != "all")


def check(ledger: Ledger, log: Path, report: Report) -> None:
    """Compare the ledger with the log, when all leases have ended: before the late settles, and after."""
    say = report.problems.append
    billed = read(log)
    ledger.sweep()
    if ledger.open_holds():
        say("holds are open after the sweep")
    charges = ledger.charges()
    report.swept = sum(charge.assumed for charge in charges)
    report.settled_by_workers = len(charges) - report.swept
    report.accounts, report.billed = len(billed), sum(map(len, billed.values()))
    for account, calls in billed.items():
        spent = ledger.total(scope=f"job:{account}").nanousd
        if not calls.total() <= spent <= LIMIT:
            say(f"account {account}: {calls.total()} billed, {spent} spent, limit {LIMIT}")
        report.full_accounts += spent > LIMIT - WORST
    for charge in charges:
        true = billed.get(account_of(charge), Counter())
        if not charge.assumed and true[charge.id] != charge.nanousd:
            say(f"{charge.id}: charged {charge.nanousd}, billed {true[charge.id]}")
    settle_late(ledger, charges, billed)
    for account, calls in billed.items():
        if (now := ledger.total(scope=f"job:{account}").nanousd) != calls.total():
            say(f"account {account}: {now} spent after all settles, {calls.total()} billed")
    if not ledger.total().nanousd == ledger.total(scope="all").nanousd == sum(c.total() for c in billed.values()):
        say("the sum of all is not the sum of what was billed")


def settle_late(ledger: Ledger, charges: Iterable[Charge], billed: dict[int, Counter[str]]) -> None:
    """Replace what was assumed by what the log says."""
    for charge in charges:
        account = account_of(charge)
        if charge.assumed and charge.id in billed.get(account, ()):
            ledger.settle(charge.id, true_charge(charge.id, account, billed[account][charge.id]))
        elif charge.assumed:
            ledger.release(charge.id)


@contextlib.contextmanager
def place_of(name: str, folder: Path) -> Iterator[tuple[Opening, Callable[[], None]]]:
    """Give what opens the ledger of that name, and what waits until the last words of the dead are written."""
    if name == "sqlite":  # the dead write nothing
        yield lambda **options: SqliteLedger(folder / "ledger.sqlite", **options), lambda: None
    else:
        from graphguard.ledger.postgres import PostgresLedger  # noqa: PLC0415 - an extra
        from tests.conformance.postgres_server import running  # noqa: PLC0415 - likewise

        with running() as dsn:
            with PostgresLedger(dsn) as ledger:
                ledger.setup()
            yield lambda **options: PostgresLedger(dsn, **options), lambda: wait_for_server(dsn)


def wait_for_server(dsn: str) -> None:
    """Wait until the server has finished what it was asked by clients that were killed while it worked."""
    import psycopg  # noqa: PLC0415 - an extra

    others = "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()"
    with psycopg.connect(dsn, autocommit=True) as connection:
        for _ in range(1_000):
            if connection.execute(others).fetchone() == (0,):
                return
            threading.Event().wait(0.03)
    raise TimeoutError("the server still works for clients that are gone")


def main() -> int:
    """Run one storm and print its report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--ledger", choices=("sqlite", "postgres"), required=True)
    parser.add_argument("--kills", type=int, default=1_000)
    parser.add_argument("--seconds", type=float, default=600.0)
    asked = parser.parse_args()
    report = Report(asked.ledger)
    with tempfile.TemporaryDirectory() as folder, place_of(asked.ledger, Path(folder)) as (opening, quiet):
        log = Path(folder, "billed.log")
        log.touch()
        storm(opening, log, report, kills=asked.kills, seconds=asked.seconds)
        quiet()
        with opening(clock=lambda: time.time() + 3_600) as ledger:
            check(ledger, log, report)
    report.problems = report.problems[:20]
    print(json.dumps(asdict(report), indent=1))  # noqa: T201 - what it is for
    return 1 if report.problems else 0


if __name__ == "__main__":
    sys.exit(main())
