"""The hub: one asyncio process that keeps one live socket per logged-in terminal. It never imports `terminal`."""
