"""The visible loop, and the only place where all parts are joined."""
