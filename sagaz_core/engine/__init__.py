"""Running a saga: events are made, folded into the state, and captured as they happen."""
