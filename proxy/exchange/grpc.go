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
