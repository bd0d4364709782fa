"""What a run wants from the hub: named as a whole before anything starts, where the hub is out of reach."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from taskvec.data.remote import MEGA, Remote, reachable
from taskvec.data.remote_data import RemoteData
from taskvec.data.tasks import BY_HAND, Task
from taskvec.errors import UserError
from taskvec.graph.nodes.examples import Decoded
from taskvec.graph.plan import Plan
from taskvec.graph.run import RunConfig
from taskvec.graph.store import Store
from taskvec.needs import Side


def remote_weights(config: RunConfig) -> list[Remote]:
    """Return the weights that a run reads from the hub: of its backbones, and of its tasks where they are published."""
    found = [*config.backbone.remotes()]
    if config.source is not None:
        found += config.source.remotes()
    return [*found, *published(config)]


def published(config: RunConfig) -> list[Remote]:
    """Return the checkpoints of the hub that a run takes its vectors from."""
    side: Side = "source" if config.moves else "target"
    backbone = config.backbone_of(side)
    return [*config.method_on(side).remotes(config.suite.tasks, backbone)]


def remote_data(config: RunConfig, tasks: Iterable[str]) -> list[Remote]:
    """Return the data sets of tasks that lie on the hub."""
    found = []
    for name in tasks:
        definition = config.suite.definitions[name]
        if isinstance(definition, Task) and of_hub(definition):
            found.append(RemoteData(name, definition))
    return found


def of_hub(task: Task) -> bool:
    """Return whether a task's data set is on the hub, and neither in a folder nor to be made by hand."""
    return task.folder is None and not task.path.startswith(BY_HAND)


def remotes(config: RunConfig) -> list[Remote]:
    """Return everything that a run, or another protocol on its suite, may read from the hub, each once."""
    suite = config.suite
    found = remote_weights(config) + remote_data(config, (*_asked_about(config), *suite.held_out))
    return list({remote.title: remote for remote in found}.values())


def _asked_about(config: RunConfig) -> list[str]:
    suite = config.suite
    control = [suite.control] if suite.control and config.protocol.uses_control else []
    return [*suite.tasks, *control]


def check_known(config: RunConfig) -> None:
    """Check that a run can be planned: what is not known here can be asked of the hub.

    Raises:
        UserError: naming all that the run wants and has not, and the command that fetches it.
    """
    wanted = remote_weights(config) + remote_data(config, _asked_about(config))
    if all(remote.known() for remote in wanted) or reachable():
        return
    unknown = [remote for remote in wanted if not remote.known()]
    if unknown:
        raise UserError(_out_of_reach(config, unknown))


def check_fetched(config: RunConfig, plan: Plan) -> None:
    """Check that what is still to be computed can be: its data and weights are here, or the hub can be reached.

    Raises:
        UserError: naming all that is missing, and the command that fetches it.
    """
    missing = lacking(config, plan)
    if missing and not reachable():
        missing = lacking(config, plan)
        if missing:
            raise UserError(_out_of_reach(config, missing))


def lacking(config: RunConfig, plan: Plan) -> list[Remote]:
    """Return what a run still reads from the hub and is not in its cache; a stored split needs nothing."""
    store = Store(config.root / "store")
    undecoded = {
        node.task: None for node in plan.nodes if isinstance(node, Decoded) and not store.has(node)
    }
    wanted = remote_weights(config) + remote_data(config, undecoded)
    return [remote for remote in wanted if not remote.here()]


def command(config: RunConfig) -> str:
    """Return the command that fetches what a run wants."""
    groups = ["backbone", "source", "suite"]
    if published(config):
        groups.append("finetune")
    words = [f"{group}={config.choices[group]}" for group in groups if config.choices.get(group)]
    chosen = " ".join(words)
    return f"taskvec prefetch {chosen}"


def total(found: Sequence[Remote]) -> str:
    """Return the size of several downloads as far as it is known."""
    sizes = [remote.size() for remote in found]
    known = [size for size in sizes if size is not None]
    megabytes = sum(known) / MEGA
    unknown = len(sizes) - len(known)
    said = [f"about {megabytes:,.0f} MB"] if known else []
    if unknown:
        said.append(f"{unknown} of unknown size")
    return " and ".join(said)


def _out_of_reach(config: RunConfig, missing: Sequence[Remote]) -> str:
    named = ", ".join(map(str, missing))
    return (
        f"not in the hub's cache, and the hub cannot be reached: {named}; where there is network, "
        f"`{command(config)}` fetches it, suite.data_dir=FOLDER takes a local mirror of data"
    )
