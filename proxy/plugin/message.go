package plugin

import "strconv"

// Message is the text with which Kong answers a status when a plugin gives none.
func Message(status int) string {
	switch status {
	case 400:
		return "Bad request"
	case 401:
		return "Unauthorized"
	case 402:
		return "Payment required"
	case 403:
		return "Forbidden"
	case 404:
		return "Not found"
	case 405:
		return "Method not allowed"
	case 406:
		return "Not acceptable"
	case 407:
		return "Proxy authentication required"
	case 408:
		return "Request timeout"
	case 409:
		return "Conflict"
	case 410:
		return "Gone"
	case 411:
		return "Length required"
	case 412:
		return "Precondition failed"
	case 413:
		return "Payload too large"
	case 414:
		return "URI too long"
	case 415:
		return "Unsupported media type"
	case 416:
		return "Range not satisfiable"
	case 417:
		return "Expectation failed"
	case 418:
		return "I'm a teapot"
	case 421:
		return "Misdirected request"
	case 422:
		return "Unprocessable entity"
	case 423:
		return "Locked"
	case 424:
		return "Failed dependency"
	case 425:
		return "Too early"
	case 426:
		return "Upgrade required"
	case 428:
		return "Precondition required"
	case 429:
		return "Too many requests"
	case 431:
		return "Request header fields too large"
	case 451:
		return "Unavailable for legal reasons"
	case 494:
		return "Request header or cookie too large"
	case 500:
		return "An unexpected error occurred"
	case 501:
		return "Not implemented"
	case 502:
		return "An invalid response was received from the upstream server"
	case 503:
		return "The upstream server is currently unavailable"
	case 504:
		return "The upstream server is timing out"
	case 505:
		return "HTTP version not supported"
	case 506:
		return "Variant also negotiates"
	case 507:
		return "Insufficient storage"
	case 508:
		return "Loop detected"
	case 510:
		return "Not extended"
	case 511:
		return "Network authentication required"
	}
	return "The upstream server responded with " + strconv.Itoa(status)
}

// Refuse is the Exit of a templated error, with a WWW-Authenticate header unless challenge is "".
func Refuse(status int, message, challenge string) *Exit {
	e := &Exit{Status: status, Body: message, Templated: true}
	if challenge != "" {
		e.Header = Challenge(challenge)
	}
	return e
}
