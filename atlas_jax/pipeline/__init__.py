"""From traces of agents to a better teacher: ingest, split, train, evaluate, and hand over a checkpoint.

`plan` says what is done, `stages` does it stage by stage and knows what is done already; `ingest`, `teaching`
and `checkpoint` are the stages, `report` tells of them.
"""
