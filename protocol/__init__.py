"""The `lockstep.v1` protocol: messages, transfer and the tables both sides share. No I/O anywhere in here."""
