//go:build !linux

package h1

import "net"

func parks(net.Conn) bool { return false }

// lot: elsewhere a connection that waits keeps its goroutine.
type lot struct{}

func (*lot) park(*Spot, net.Conn, func(), func() bool) bool { return false }
func (*lot) wake(*Spot)                                     {}
func (*lot) close()                                         {}
