"""Where ranks live and how they end: processes, stores, watchdog, journal."""
