"""Asks: one question per short script, the command line, reports. Imported by nothing."""

if __name__ == "scenarios":  # found in a checkout, by the name that it had until version 0.1
    import sys

    if sys.argv[0] != "-m":
        raise ImportError(
            "scenarios is layerwise.scenarios now; its questions are `import layerwise`, after "
            "pip install ."
        )
    asked = sys.orig_argv[sys.orig_argv.index("-m") + 1]
    command = {
        "scenarios.command_line": "layerwise",
        "scenarios.whole_host": "layerwise host",
        "scenarios.accuracy.counters": "layerwise compare --counters FILE",
    }.get(asked, f"layerwise what-if {asked.rpartition('.')[2]}")
    print(f"python -m {asked} is now: {command}", file=sys.stderr)
    raise SystemExit(2)
