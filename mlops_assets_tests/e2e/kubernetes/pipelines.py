"""The pipeline files of the deployment's tests: small, and each there to be broken in one way."""

from __future__ import annotations

from pathlib import Path

import mlops_assets

_SHIPPED = Path(mlops_assets.__file__).parent / "pipelines"

_WAITS = "echo begun; sleep 12"
_EATS = "python -c 'import time; food = bytes([1]) * (500 * 2**20); time.sleep(3)'"
_SMALL = "cpu: 0.25, memory: 1Gi"

CALAMITIES = f"""\
description: Each step meets another misfortune, and all of them come through
retries: {{max: 1, delay: 0}}
steps:
  evicted: {{command: "{_WAITS}", compute: {{{_SMALL}}}}}
  deleted: {{command: "{_WAITS}", compute: {{{_SMALL}}}}}
  hungry: {{command: "{_EATS}", compute: {{cpu: 0.25, memory: 500Mi, max_memory: 2Gi}}}}
  accelerated:
    command: echo begun
    compute: {{{_SMALL}, gpu: 1}}
"""

CALAMITIES_OF_NODES = f"""\
description: What only the nodes themselves can do to a step
retries: {{max: 1, delay: 0}}
steps:
  preempted: {{command: "{_WAITS}", compute: {{{_SMALL}}}}}
  killed: {{command: "{_WAITS}", compute: {{{_SMALL}}}}}
  lost:
    command: "{_WAITS}"
    compute:
      cpu: 0.25
      memory: 1Gi
      node_selector: {{disk: spare}}
      tolerations: [{{key: spare, effect: NoSchedule}}]
"""

HOPELESS = f"""\
description: Steps that no retry can help
retries: {{max: 1, delay: 0}}
steps:
  insatiable: {{command: "{_EATS}", compute: {{cpu: 0.25, memory: 500Mi, max_memory: 500Mi}}}}
  missing: {{command: [there-is-no-such-program], compute: {{{_SMALL}}}}}
"""

LONG = """\
description: Two steps, the first of which takes long enough for something to happen
retries: {max: 1, delay: 0}
steps:
  first: {command: "echo begun; sleep 15", compute: {cpu: 0.25, memory: 1Gi}}
  second: {needs: [first], command: "echo it was $FIRST", compute: {cpu: 0.25, memory: 1Gi}}
recompute: [first, second]
"""

EVERY_MINUTE = """\
description: A step that a schedule starts
steps:
  tick: {command: date -u, compute: {cpu: 0.25, memory: 1234Mi}}
recompute: [tick]
schedule: "* * * * *"
"""

CONTAINED = """\
description: A step that is a container
steps:
  inside:
    image: IMAGE
    command: [sh, -c, "echo hello from $HOSTNAME"]
    compute: {cpu: 0.1, memory: 64Mi}
"""


def pipelines(image: str) -> dict[str, str]:
    """Return the files by name; one of them runs an image, which is the project's here."""
    return {
        "calamities": CALAMITIES,
        "calamities_of_nodes": CALAMITIES_OF_NODES,
        "contained": CONTAINED.replace("IMAGE", image),
        "hopeless": HOPELESS,
        "long": LONG,
        "every_minute": EVERY_MINUTE,
        **{name: (_SHIPPED / f"{name}.yaml").read_text() for name in ("greeting", "iris")},
    }
