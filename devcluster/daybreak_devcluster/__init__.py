"""A real Kubernetes control plane on one machine, without containers.

The development cluster is what the demo and the tests run against: etcd, kube-apiserver,
kube-controller-manager and kube-scheduler as plain processes on loopback, and a node agent that
runs pods as sandboxed processes. It knows nothing of Daybreak's own packages.
"""
