"""An explicit-state model of docs/postgres-ha-protocol.md: `make model`; tests/unit/ha/test_model.py is the short form.

`state.py` is what a cluster is, `model.py` what may happen next, `invariants.py` what must hold after each step,
`recovery.py` the way back (I7), `explore.py` the search, `mutations.py` the mistakes that the search must find. What
the protocol decides is decided here by the project's own `module_utils/devmentor_ha`.

Three things are modelled as they have to be for the invariants; `mutations.py` has the harm that is done otherwise:
- a leader by a new epoch acknowledges nothing until its rule row is on its quorum: it waits for NOBODY until then;
- a fenced node that has diverged from the candidate, an old leader too, is rewound to it before the rule is committed;
- a node that rejoins promises the leader's epoch first, so that no candidate of a lower epoch can take it back.
"""
