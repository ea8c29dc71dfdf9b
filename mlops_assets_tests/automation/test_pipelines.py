"""A pipeline that runs by itself: its source is looked at, and layer by layer follows."""

from dataclasses import replace

from dagster import AssetsDefinition, DagsterInstance

from mlops_assets.automation.conditions import automated
from mlops_assets_tests.automation.conftest import World
from mlops_assets_tests.automation.test_sensors import Looks
from mlops_assets_tests.conftest import DUMMY, Project, write_customers


class Automated(World):
    """The pipeline `customers`, ticked and run."""

    def __init__(self, project: Project) -> None:
        super().__init__(project.instance)
        self.project, self.looks = project, Looks(project)

    def layer(self) -> set[str]:
        """Look at the source, tick, and run what is requested; return its stages."""
        self.looks.look()
        definitions = self.project.definitions()
        self.resources = dict(definitions.resources or {})
        self.assets = [
            automated(one) for one in definitions.assets or () if isinstance(one, AssetsDefinition)
        ]
        return {name.removeprefix("customers/") for name in self.run_what_is_requested()}


def test_new_data_moves_through_a_pipeline_layer_by_layer_and_stops_where_nothing_changes(
    customers: Project,
) -> None:
    customers.add("customers", DUMMY)
    with DagsterInstance.ephemeral() as instance:
        pipeline = Automated(replace(customers, instance=instance))
        assert pipeline.layer() == {"raw", "train", "test", "model", "metrics", "champion"}
        assert pipeline.layer() == set()

        write_customers(customers.folder / "pipelines" / "customers.csv", rows=130)
        assert [pipeline.layer() for _ in range(2)] == [{"raw"}, {"train", "test"}]
        assert pipeline.layer() <= {"model", "metrics", "champion"}
        layers = [pipeline.layer() for _ in range(4)]
        assert layers[-1] == set()
        assert pipeline.stale_to_dagster() == set()
