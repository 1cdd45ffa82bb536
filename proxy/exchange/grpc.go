package exchange

// GRPCStatus is the gRPC status that stands for an HTTP status (Kong's table).
func GRPCStatus(status int) int {
	switch status {
	case 200:
		return 0
	case 400:
		return 3
	case 401:
		return 16
	case 403:
		return 7
	case 404:
		return 5
	case 409:
		return 6
	case 429:
		return 8
	case 499:
		return 1
	case 501:
		return 12
	case 503:
		return 14
	case 504:
		return 4
	}
	switch status / 100 {
	case 5:
		return 13
	case 4:
		return 3
	}
	return 2
}

// GRPCMessage is a text as grpc-message has it: what is not printable ASCII, and "%", is escaped (PROTOCOL-HTTP2 of the gRPC project).
func GRPCMessage(text string) string {
	var b []byte
	for i := range len(text) {
		if c := text[i]; c < 0x20 || c > 0x7e || c == '%' {
			if b == nil {
				b = append(make([]byte, 0, len(text)+16), text[:i]...)
			}
			b = append(b, '%', upperHex[c>>4], upperHex[c&15])
		} else if b != nil {
			b = append(b, c)
		}
	}
	if b == nil {
		return text
	}
	return string(b)
}
