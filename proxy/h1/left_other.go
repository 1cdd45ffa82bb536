//go:build !linux

package h1

import "net"

// peerEnded: elsewhere a client that leaves is noticed when something is written to it.
func peerEnded(net.Conn) bool { return false }

func unsent(net.Conn) int { return 0 }

func setUnsent(net.Conn, int) {}
