"""Stand-ins for Redis and AWS that are worlds by themselves: what a saga leaves in them is seen, with its key."""
