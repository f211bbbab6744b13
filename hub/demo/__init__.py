"""The demonstration: one small program of ours as real installers, and the devices it is pushed to."""
