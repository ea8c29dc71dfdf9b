"""The job in Metaflow: what one step leaves in `self`, the next one finds there."""

import os

from metaflow import FlowSpec, Parameter, step


class IrisFlow(FlowSpec):
    """Train and judge a model."""

    path = Parameter("path", default=os.environ["IRIS_CSV"])

    @step
    def start(self) -> None:
        """Read all flowers."""
        import work

        self.raw = work.load(self.path)
        self.next(self.split)

    @step
    def split(self) -> None:
        """Divide them."""
        import work

        self.training, self.test = work.split(self.raw)
        self.next(self.train)

    @step
    def train(self) -> None:
        """Train the model."""
        import work

        self.model = work.train(self.training)
        self.next(self.end)

    @step
    def end(self) -> None:
        """Judge it: a step of its own before this one would cost a process more."""
        import work

        self.evaluation = work.evaluate(self.model, self.test, "figures")


if __name__ == "__main__":
    IrisFlow()
