"""The job as a plain script, in the working directory."""

import json
import os
from pathlib import Path

import joblib
from work import evaluate, load, split, train

if __name__ == "__main__":
    raw = load(os.environ["IRIS_CSV"])
    raw.to_parquet("raw.parquet")
    training, test = split(raw)
    training.to_parquet("train.parquet")
    test.to_parquet("test.parquet")
    model = train(training)
    joblib.dump(model, "model.joblib")
    evaluation = evaluate(model, test, "figures")
    Path("metrics.json").write_text(json.dumps(evaluation))
