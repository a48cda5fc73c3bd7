"""PostgreSQL failover: pure decisions, and the client of the agents. docs/postgres-ha-protocol.md is the protocol.

Imported by modules as `ansible.module_utils.devmentor_ha` and by the agent as `devmentor_ha` (its wheel carries this
package): relative imports and the standard library only.
"""
