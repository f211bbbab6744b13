"""The `lockstep.v1` protocol: messages, transfer, matching and the tables both sides share. No I/O anywhere in here."""
