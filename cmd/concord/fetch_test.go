package main

import (
	"fmt"
	"io"
	"net/http"
	"os"
	"time"
)

// fetch is the scripts' curl: fetch URL prints the status and the body.
func fetch() {
	client := http.Client{Timeout: 10 * time.Second}
	res, err := client.Get(os.Args[1])
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	fmt.Printf("%d %s\n", res.StatusCode, body)
}
