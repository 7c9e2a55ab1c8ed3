"""From a fetched batch to its commit: decode -> handler (retry, bisect) -> dead-letter limit -> dead letters -> commit.

`subscriber` polls, and waits for the batch before a rebalance takes its partitions. `consumption` composes the steps.
`decode` finds bad records, `attempts` calls the handler, `retry` isolates failing records, `redelivery` backs off
while the handler is down, `resource` keeps open what it needs, `dead_letter_limit` halts, `pending_letters` writes what
is bad through `dead_letters`, and `commits` commits. Polls, writes and commits that fail while a broker is down are
retried, and `stuck_loop` detects when that no longer helps.

Results follow one another: a handler call gives a `CallResult`, each record of its batch a `Finding`, the bad ones a
`BadRecord` each, and the batch an `Outcome`, which the commit settles.

Depends on `apps.chassis` and `contracts`; the other packages of the consumer depend on it.
"""
