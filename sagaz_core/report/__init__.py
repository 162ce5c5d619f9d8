"""What was proved of the sagas, for readers: lines for a terminal, and one page of HTML with its data beside it."""
