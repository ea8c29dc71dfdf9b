"""A code location for runs in several processes: a chain of three assets, and some that misbehave.

Everything lies in the folder that `TEST_FOLDER` names: the store; `ran/` with a file for each
computation, `initialised/` with one for each process that initialised the resource `gpu`,
`launched/` and `terminated/` with one for each step that the executor `elsewhere` did so with. A
file `code/<asset>` is what the asset is decided by; a file `away` makes the store fail the next
time that it is asked, a file `broken` whenever it tells, and a file `no_cluster` makes `elsewhere`
fail to launch.
"""

import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dagster import (
    AssetCheckResult,
    AssetCheckSpec,
    AssetExecutionContext,
    AssetsDefinition,
    ConfigurableResource,
    DagsterEvent,
    Definitions,
    EnvVar,
    Executor,
    HookContext,
    InitExecutorContext,
    InitResourceContext,
    Output,
    RetryPolicy,
    StaticPartitionsDefinition,
    asset,
    define_asset_job,
    executor,
    in_process_executor,
    multiple_process_executor_requirements,
    success_hook,
)
from dagster._core.execution.context.system import StepExecutionContext
from dagster._core.execution.retries import RetryMode
from dagster._core.executor.step_delegating import (
    CheckStepHealthResult,
    StepDelegatingExecutor,
    StepHandler,
    StepHandlerContext,
)

from mlops_assets import time_limit
from mlops_assets.execution.executors import local_executor
from mlops_assets.execution.step_handler import memoising
from mlops_assets.store.io_manager import StoreIOManager
from mlops_assets.store.memo import Outside, Seen
from mlops_assets.store.reuse import defined_by

PARTS = StaticPartitionsDefinition(["one", "two", "three"])
time_limit.GRACE_SECONDS = 1.0


def folder() -> Path:
    return Path(os.environ["TEST_FOLDER"])


def note(kind: str, name: str) -> None:
    path = folder() / kind / f"{name}.{os.getpid()}.{time.monotonic_ns()}"
    path.parent.mkdir(exist_ok=True)
    path.touch()


def noted(kind: str) -> list[str]:
    return sorted(path.name.split(".")[0] for path in (folder() / kind).glob("*"))


class FaultyStore(StoreIOManager):
    """A store that cannot be asked, or not told from to the end, when a test wants it so."""

    def reused(self, step_context: StepExecutionContext) -> Iterator[DagsterEvent] | None:
        if (folder() / "away").exists():
            (folder() / "away").unlink()
            raise ConnectionError("the store is away")
        events = super().reused(step_context)
        return events and self._told(events)

    def _told(self, events: Iterator[DagsterEvent]) -> Iterator[DagsterEvent]:
        for event in events:
            yield event
            if event.is_step_materialization and (folder() / "broken").exists():
                raise ConnectionError("the store went away")


@dataclass(frozen=True)
class Changeable:
    """What decides the result of an asset: a number that a test puts into a file."""

    name: str
    code: None = None
    recompute: bool = False

    def look(self, _outside: Outside, partition: str | None) -> dict[str, Seen]:
        name = self.name if partition is None else f"{self.name}_{partition}"
        return {"code": Seen(str(code(name)))}

    def is_current(self) -> bool:
        return True


class Gpu(ConfigurableResource[Any]):
    def setup_for_execution(self, context: InitResourceContext) -> None:
        note("initialised", "gpu")


def computed(name: str) -> int:
    """Note that an asset is computed; return its code version."""
    note("ran", name)
    return code(name)


def code(name: str) -> int:
    path = folder() / "code" / name
    return int(path.read_text()) if path.exists() else 1


def example(**options: Any) -> Callable[[Callable[..., Any]], AssetsDefinition]:
    def decorate(function: Callable[..., Any]) -> AssetsDefinition:
        decided = defined_by(Changeable(function.__name__))(function)
        return asset(io_manager_key="store", code_version="1", **options)(decided)

    return decorate


@example(check_specs=[AssetCheckSpec("positive", asset="first")])
def first(gpu: Gpu):
    yield Output({"value": computed("first")})
    yield AssetCheckResult(passed=True)


@example()
def second(gpu: Gpu, first: Any) -> Any:
    return {"value": computed("second") * (first["value"] > 0)}


@example()
def third(gpu: Gpu, second: Any) -> Any:
    return {"value": computed("third") + second["value"]}


@example(retry_policy=RetryPolicy(max_retries=1))
def fails_once() -> Any:
    computed("fails_once")
    if noted("ran").count("fails_once") == 1:
        raise ConnectionError("the first attempt")
    return {}


@example(retry_policy=RetryPolicy(max_retries=1))
def killed_once() -> Any:
    computed("killed_once")
    if noted("ran").count("killed_once") == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    return {}


@example(retry_policy=RetryPolicy(max_retries=1))
def defective() -> Any:
    computed("defective")
    raise KeyError("a defect")


@example(retry_policy=RetryPolicy(max_retries=1))
def always_killed() -> Any:
    computed("always_killed")
    os.kill(os.getpid(), signal.SIGKILL)


@example(op_tags={time_limit.TIMEOUT: "5"})
def too_slow() -> Any:
    computed("too_slow")
    time.sleep(600)


@example(op_tags={time_limit.TIMEOUT: "5"})
def never_ends() -> Any:
    computed("never_ends")
    while True:  # as compiled code does, it never notices that it is interrupted
        with suppress(BaseException):
            time.sleep(600)


@example(op_tags={time_limit.TIMEOUT: "5"})
def never_lets_go() -> Any:
    computed("never_lets_go")
    ctypes.PyDLL(None).sleep(600)  # without letting go of the interpreter


@example(retry_policy=RetryPolicy(max_retries=5))
def slow() -> Any:
    computed("slow")
    time.sleep(600)
    return {}


@example(partitions_def=PARTS, retry_policy=RetryPolicy(max_retries=1))
def parts(context: AssetExecutionContext) -> Any:
    name = f"parts_{context.partition_key}"
    value = computed(name)
    if (folder() / "killing" / name).exists():
        (folder() / "killing" / name).unlink()
        os.kill(os.getpid(), signal.SIGKILL)
    return {"value": value}


@example(partitions_def=PARTS)
def below(context: AssetExecutionContext, parts: Any) -> Any:
    return {"value": computed(f"below_{context.partition_key}") + parts["value"]}


@success_hook(required_resource_keys={"gpu"})
def noting_hook(context: HookContext) -> None:
    note("hooked", context.op.name)


class Launcher(StepHandler):
    """Launches each step as a process of its own, by the command that a pod would run."""

    name = "Launcher"

    def __init__(self) -> None:
        self.processes: dict[str, subprocess.Popen[bytes]] = {}

    def launch_step(self, context: StepHandlerContext) -> Iterator[DagsterEvent]:
        key = self._key(context)
        if (folder() / "no_cluster").exists():
            raise ConnectionError("the cluster is away")
        note("launched", key)
        yield DagsterEvent.step_worker_starting(context.get_step_context(key), "launching", {})
        command = [sys.executable, "-m", *context.execute_step_args.get_command_args()]
        self.processes[key] = subprocess.Popen(command, stdout=subprocess.DEVNULL)

    def check_step_health(self, context: StepHandlerContext) -> CheckStepHealthResult:
        process = self.processes.get(self._key(context))
        if process is None or process.poll():
            return CheckStepHealthResult.unhealthy("the process is gone")
        return CheckStepHealthResult.healthy()

    def terminate_step(self, context: StepHandlerContext) -> Iterator[DagsterEvent]:
        key = self._key(context)
        note("terminated", key)
        if key in self.processes:
            self.processes[key].terminate()
        yield from ()

    def _key(self, context: StepHandlerContext) -> str:
        (key,) = context.execute_step_args.step_keys_to_execute or ()
        return key


@executor(name="elsewhere", requirements=multiple_process_executor_requirements())
def elsewhere(_: InitExecutorContext) -> Executor:
    return StepDelegatingExecutor(
        Launcher(), RetryMode.ENABLED, sleep_seconds=0.02, check_step_health_interval_seconds=0
    )


chain = ["first", "second", "third"]
defs = Definitions(
    assets=[
        *(first, second, third, fails_once, killed_once, slow, parts, below),
        *(defective, always_killed, too_slow, never_ends, never_lets_go),
    ],
    jobs=[
        define_asset_job("chain", chain),
        define_asset_job("with_hook", ["first"], hooks={noting_hook}),
        define_asset_job("chain_elsewhere", chain, executor_def=memoising(elsewhere)),
        define_asset_job(
            "nothing_to_delegate_to", chain, executor_def=memoising(in_process_executor)
        ),
        define_asset_job("roots_elsewhere", ["first", "slow"], executor_def=memoising(elsewhere)),
        define_asset_job("troubled", ["fails_once", "killed_once"]),
        define_asset_job("hopeless", ["defective", "always_killed"]),
        define_asset_job("endless", ["too_slow", "never_ends", "never_lets_go"]),
        define_asset_job("slow", ["slow"]),
        define_asset_job("parts", ["parts", "below"]),
        define_asset_job("parts_elsewhere", ["parts", "below"], executor_def=memoising(elsewhere)),
    ],
    resources={"store": FaultyStore(url=EnvVar("TEST_FOLDER")), "gpu": Gpu()},
    executor=local_executor,
)
