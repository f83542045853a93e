"""Alerts: rules over a run's rows of metrics, judged while it trains and afterwards, and where they are sent.

`rules` reads them from the config, `engine` judges rows, `live` does so beside the loop of training,
`afterwards` from a run directory, `sinks` and `outbox` send what is found. Nothing here stops a run.
"""
