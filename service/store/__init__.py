"""What the controller remembers: jobs, attempts, events, metrics, checkpoints, tokens. The only place that speaks SQL.

Every change of state is one transaction. Decides nothing: which change to make is the caller's, whether it may follow is `service.states`.
"""
