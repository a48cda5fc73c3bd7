"""An explicit-state model of docs/postgres-ha-protocol.md: `make model`, and tests/unit/ha/test_model.py for the short form.

`state.py` is what a cluster is, `model.py` what may happen next, `invariants.py` what must hold after each step, `recovery.py`
the way back (I7), `explore.py` the search, `mutations.py` the mistakes that the search must find. What is decided in the
protocol is decided here by the project's own `module_utils/devmentor_ha`.
"""
