"""Measures: the torch engine that runs the programs that `layerwise.sim.plan` compiles."""

if __name__ == "hw":  # found in a checkout, by the name that it had until version 0.1
    import sys

    if sys.argv[0] != "-m":
        raise ImportError(
            "hw is layerwise.hw now: from layerwise.hw import ..., after pip install ."
        )
    asked = sys.orig_argv[sys.orig_argv.index("-m") + 1]
    command = {
        "hw": "layerwise measure (under torchrun: -m layerwise.hw)",
        "hw.links": "layerwise links",
        "hw.links.overlap": "layerwise overlap",
        "hw.counters": "layerwise counters",
        "hw.figures": "layerwise figures",
        "hw.ranks.journal": "layerwise recover",
    }.get(asked, f"python -m layerwise.{asked}")
    print(f"python -m {asked} is now: {command}", file=sys.stderr)
    raise SystemExit(2)
