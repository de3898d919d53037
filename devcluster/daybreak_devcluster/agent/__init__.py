"""The node agent: registers one node and runs the pods that are bound to it.

It stands where a kubelet stands on a real cluster. Each container is a process in a bubblewrap
sandbox; what the agent enforces, accepts without enforcing, and refuses is in
`devcluster/AGENT.md`.
"""
