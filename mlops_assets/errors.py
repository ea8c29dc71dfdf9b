"""The errors that users can mend: bad settings, bad pipeline files, bad data, a damaged store.

Every one of them says what is wrong, where, and what to do about it, is never worth a retry, and is
shown without a stack trace. Anything else that is raised is either transient or a defect.
"""


class UserError(Exception):
    """A mistake that a person can mend and that a retry cannot."""


class SettingsError(UserError):
    """An environment variable has a value that is not allowed."""


class DataError(UserError):
    """The data cannot be read, or is not what the pipeline file says it is."""


class ModelError(UserError):
    """The estimator refused its parameters or the data it was given."""


class DeviceError(UserError):
    """A GPU was required, and the estimator cannot be given one."""


class StoreError(UserError):
    """An object of the store is missing, damaged or of a kind that is never stored."""
