"""When pipelines run: jobs, schedules, sensors. What they run is `mlops_assets.assets`."""
