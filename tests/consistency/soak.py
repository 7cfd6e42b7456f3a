"""`scripts/soak consistency`: injects random faults for the given time; exits with 1 on a violation."""

from __future__ import annotations

import argparse
import asyncio
import random
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from asgi_datasource.testing import EmbeddedCluster
from tests.consistency.history import check
from tests.consistency.service import Fault, History, Service, in_phases, report, share_of_replicas


def one_fault(service: Service, dice: random.Random) -> tuple[str, Fault]:
    """A random fault; faults that block commits never overlap."""
    standbys = service.standbys()
    node = dice.choice(standbys)
    behind = dice.choice(list(service.proxies))
    seconds = dice.uniform(1.0, 6.0)
    faults: dict[str, Fault] = {
        f"{node.name} paused": lambda: service.pause(seconds, node),
        "both paused": lambda: service.pause(seconds, *standbys),
        f"{node.name} delayed": lambda: service.delay(seconds, node),
        f"{node.name} killed": lambda: service.kill(seconds / 3, node),
        f"{node.name} frozen": lambda: service.freeze(seconds, node),
        f"{behind} cut off": lambda: service.cut_off(seconds, behind),
        f"{service.writer.name} killed, failed over": service.fail_over,
        f"{service.writer.name} frozen, failed over": lambda: service.fail_over(freezes=True),
    }
    return dice.choice(list(faults.items()))


async def quiet(service: Service, history: History, seconds: float) -> None:
    """Inject no fault for a while."""
    await in_phases(service, history, {"quiet": lambda: asyncio.sleep(seconds)}, pause_s=0.0)


async def soak(seconds: float, clients: int, seed: int) -> bool:
    """Run the soak test; True without violations."""
    dice = random.Random(seed)
    with EmbeddedCluster(replicas=2, settings={"max_connections": 200}) as cluster:
        async with Service.create(cluster, Path(tempfile.mkdtemp())) as service:
            async with service.used(service.config(), clients=clients, seed=seed) as history:
                await asyncio.sleep(1.0)
                await quiet(service, history, min(20.0, seconds / 5))
                ends_at = time.monotonic() + seconds
                while time.monotonic() < ends_at:
                    name, fault = one_fault(service, dice)
                    await in_phases(service, history, {name: fault}, pause_s=dice.uniform(0.2, 3.0))
            await service.repair()
            found = check(history.events, await service.final())
    print(f"{report(history)}; without faults {share_of_replicas(history, 'quiet'):.1%}")
    if found:
        print(f"VIOLATIONS (seed {seed}): {found}", file=sys.stderr)
    return not found


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the soak test once."""
    parser = argparse.ArgumentParser("scripts/soak consistency", description=__doc__)
    parser.add_argument("--seconds", type=float, default=300.0, help="duration; default: %(default)s")
    parser.add_argument("--clients", type=int, default=24, help="number of clients; default: %(default)s")
    parser.add_argument("--seed", type=int, default=int(time.time()), help="repeats the same sequence of faults")
    options = parser.parse_args(arguments)
    return 0 if asyncio.run(soak(options.seconds, options.clients, options.seed)) else 1


if __name__ == "__main__":
    sys.exit(main())
