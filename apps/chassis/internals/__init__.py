"""Everything that uses private parts of a library, one module for each purpose; `canary` says what each must do.

Depends on `contracts` and parts of `chassis.kafka`; all of `apps` depends on it.
"""
