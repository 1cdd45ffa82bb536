package stream

import (
	"encoding/json"
	"strconv"
	"time"

	"concord/proxy/exchange"
)

// appendBasic is Kong's format "basic": $remote_addr [$time_local] $protocol $status $bytes_sent $bytes_received $session_time.
func appendBasic(b []byte, x *exchange.Exchange) []byte {
	b = x.ClientIP.AppendTo(b)
	b = time.Now().AppendFormat(append(b, " ["...), "02/Jan/2006:15:04:05 -0700")
	b = append(b, "] "...)
	b = append(b, transport(x)...)
	for _, n := range []int64{int64(x.Response.Status), x.BytesSent, x.BytesReceived} {
		b = strconv.AppendInt(append(b, ' '), n, 10)
	}
	b = strconv.AppendFloat(append(b, ' '), x.Stream.Session.Seconds(), 'f', 3, 64)
	return append(b, '\n')
}

// transport is nginx's $protocol.
func transport(x *exchange.Exchange) string {
	if x.Stream.Protocol == "udp" {
		return "UDP"
	}
	return "TCP"
}

// appendJSON is the same as an object, and what the basic format leaves out.
func appendJSON(b []byte, x *exchange.Exchange) []byte {
	line := struct {
		Time             string  `json:"time"`
		ClientIP         string  `json:"client_ip"`
		Protocol         string  `json:"protocol"`
		SNI              string  `json:"sni,omitempty"`
		Status           int     `json:"status"`
		Error            string  `json:"error,omitempty"`
		BytesSent        int64   `json:"bytes_sent"`
		BytesReceived    int64   `json:"bytes_received"`
		UpstreamSent     int64   `json:"upstream_bytes_sent"`
		UpstreamReceived int64   `json:"upstream_bytes_received"`
		Session          float64 `json:"session_time"`
		Upstream         string  `json:"upstream,omitempty"`
		Route            string  `json:"route,omitempty"`
		Service          string  `json:"service,omitempty"`
	}{
		Time: x.Start.Format(time.RFC3339Nano), ClientIP: x.ClientIP.String(), Protocol: x.Stream.Protocol, SNI: x.Conn.SNI, Status: x.Response.Status,
		BytesSent: x.BytesSent, BytesReceived: x.BytesReceived, UpstreamSent: x.Stream.UpstreamSent, UpstreamReceived: x.Stream.UpstreamReceived,
		Session: x.Stream.Session.Seconds(),
	}
	if x.Err != nil {
		line.Error = x.Err.Error()
	}
	if x.Peer.IsValid() {
		line.Upstream = x.Peer.String()
	}
	if x.Route != nil {
		line.Route = x.Route.ID
	}
	if x.Service != nil {
		line.Service = x.Service.ID
	}
	text, err := json.Marshal(line)
	if err != nil {
		return b
	}
	return append(append(b, text...), '\n')
}
