import nothing_like_this  # noqa: F401 - it is not there
