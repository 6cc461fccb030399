"""How a run is shown: table, JSON, page, differences to an earlier run, quality against cost."""
