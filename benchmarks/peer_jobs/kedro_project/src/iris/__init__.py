"""The job as a Kedro project: nodes of plain functions, and a catalogue of what they hand on."""
