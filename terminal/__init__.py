"""The terminal: one device of an account and the agent that runs on it. It never imports `hub`."""
