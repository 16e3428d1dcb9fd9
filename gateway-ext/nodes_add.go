package main

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"github.com/seed-780dceda/thicket/gateway-ext/internal/nodes"
)

// addNode makes a node of an OpenFaaS provider.
func (c *command) addNode(o *operator) *cobra.Command {
	var q nodes.AddRequest
	var file string
	var labels []string
	cmd := &cobra.Command{
		Use:   "add NAME --url URL",
		Short: "Make a node of a faasd, an OpenFaaS on Kubernetes, or another Thicket",
		Long: `Make a node of whatever speaks the OpenFaaS API: a faasd, an OpenFaaS on Kubernetes
(faas-netes), another Thicket. It is asked what it is before it counts. Functions
that are there already are shown by gateway-ext nodes describe, and left alone
unless they are adopted.`,
		Example: `  gateway-ext nodes add nuc --url http://192.168.1.20:8080 --user admin --password-file ~/faasd-password
  gateway-ext nodes add cluster --url https://openfaas.example.com --user admin --password-file - < password`,
		Args: oneArg,
		RunE: func(cmd *cobra.Command, args []string) error {
			q.Name = args[0]
			if q.URL == "" {
				return errors.New("--url is missing: where does the provider answer? http://192.168.1.20:8080, for example")
			}
			if file != "" {
				password, err := readPassword(cmd.InOrStdin(), file)
				if err != nil {
					return err
				}
				q.Password = password
				if q.User == "" {
					q.User = "admin"
				}
			}
			for _, s := range labels {
				k, v, ok := strings.Cut(s, "=")
				if !ok {
					return fmt.Errorf("--label %s: write NAME=VALUE", s)
				}
				if q.Labels == nil {
					q.Labels = make(map[string]string)
				}
				q.Labels[k] = v
			}
			var s struct {
				nodes.Status
				Adoptions []nodes.Adoption
			}
			if err := o.ask(cmd.Context(), http.MethodPost, "/system/nodes", q, &s); err != nil {
				return err
			}
			if err := c.printNodes([]nodes.Status{s.Status}); err != nil {
				return err
			}
			if p := s.Provider; p != nil && p.Cannot != "" {
				fmt.Fprintf(c.stdout, "%s is %s: %s\n", s.Name, p.Capabilities.Provider, p.Cannot)
			}
			if p := s.Provider; p != nil && len(p.Found) > 0 && !q.Adopt {
				fmt.Fprintf(c.stdout, "found there, not managed (gateway-ext nodes adopt %s takes them over):\n", s.Name)
				for _, f := range p.Found {
					fmt.Fprintf(c.stdout, "  %s.%s\t%s\n", f.Name, f.Namespace, f.Image)
				}
			}
			return c.printAdoptions(s.Adoptions)
		},
	}
	cmd.Flags().StringVar(&q.URL, "url", "", "where it answers: `URL` of its gateway, or of its provider")
	cmd.Flags().StringVar(&q.User, "user", "", "its user (admin, if there is a password)")
	cmd.Flags().StringVar(&file, "password-file", "", "a `file` with its password; - reads it from the standard input")
	cmd.Flags().StringArrayVar(&labels, "label", nil, "`NAME=VALUE` of the node, such as zone=shelf-1; can be repeated")
	cmd.Flags().BoolVar(&q.Adopt, "adopt", false, "take over the functions that are there")
	return cmd
}

// readPassword reads a password from a file, or from what is piped in.
func readPassword(stdin io.Reader, file string) (string, error) {
	var b []byte
	var err error
	if file == "-" {
		b, err = io.ReadAll(io.LimitReader(stdin, 8<<10))
	} else {
		b, err = os.ReadFile(file)
	}
	if err != nil {
		return "", fmt.Errorf("--password-file: %w", err)
	}
	password := strings.TrimSpace(string(b))
	if password == "" {
		return "", fmt.Errorf("--password-file: %s is empty", file)
	}
	return password, nil
}

// adoptFunctions takes over what is at a provider.
func (c *command) adoptFunctions(o *operator) *cobra.Command {
	return &cobra.Command{
		Use: "adopt NODE [FUNCTION...]", Short: "Take over functions that were found at a provider; all, if none is named",
		Args: atLeast(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			var done []nodes.Adoption
			if err := o.ask(cmd.Context(), http.MethodPost, "/system/nodes/"+url.PathEscape(args[0])+"/adopt", nodes.AdoptRequest{Functions: args[1:]}, &done); err != nil {
				return err
			}
			if len(done) == 0 {
				fmt.Fprintf(c.stdout, "%s has no function that isn't this fleet's already\n", args[0])
			}
			return c.printAdoptions(done)
		},
	}
}

func (c *command) printAdoptions(done []nodes.Adoption) error {
	var failed []string
	for _, a := range done {
		if a.Adopted {
			fmt.Fprintf(c.stdout, "%s is the fleet's now\n", a.Function)
			continue
		}
		failed = append(failed, a.Function+": "+a.Why)
	}
	if len(failed) > 0 {
		return errors.New("not adopted: " + strings.Join(failed, "; "))
	}
	return nil
}
