"""Pure functions of machine learning: from a source of data to a judged model.

No Dagster, no store, no clock: the same arguments give the same result. The only I/O is reading the
source (`read`). What travels between the functions is a pandas DataFrame whose index `row` is the
row's position in the raw data, so that train and test can be compared row by row.
"""
