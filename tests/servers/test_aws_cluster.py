"""Check the cluster files for AWS against a mocked account, with the code that `ray up` runs."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import boto3
import pytest
from botocore.validate import ParamValidator
from moto import mock_aws
from ray.autoscaler._private.aws.node_provider import AWSNodeProvider
from ray.autoscaler._private.util import prepare_config, validate_config

from tests.unit.test_cluster_files import CLUSTER, GROUPS, groups, load


@pytest.fixture(scope="module")
def aws_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    """`aws.yaml` as `ray up` resolves it, in a mocked account in which only `aws_stack.yaml` is deployed."""
    with mock_aws():
        boto3.client("cloudformation", region_name="us-west-2").create_stack(
            StackName="mpa-ray",
            TemplateBody=(CLUSTER / "aws_stack.yaml").read_text(),
            Parameters=[{"ParameterKey": "Bucket", "ParameterValue": "my-bucket"}],
        )
        config = AWSNodeProvider.fillout_available_node_types_resources(prepare_config(load("aws.yaml")))
        validate_config(config)
        with pytest.MonkeyPatch.context() as patch:
            # Ray creates a key pair and stores it in the home directory.
            patch.setenv("HOME", str(tmp_path_factory.mktemp("home")))
            resolved = AWSNodeProvider.bootstrap_config(config)
        yield resolved


def test_aws_security_group_admits_only_its_own_members(aws_cluster: dict[str, Any]) -> None:
    ec2 = boto3.client("ec2", region_name="us-west-2")
    ids = {kind["node_config"]["SecurityGroupIds"][0] for kind in aws_cluster["available_node_types"].values()}
    (group,) = ec2.describe_security_groups(GroupIds=list(ids))["SecurityGroups"]
    assert group["GroupName"] == "mpa-ray"
    (rule,) = group["IpPermissions"]
    assert not rule["IpRanges"]
    assert not rule.get("Ipv6Ranges")
    assert [pair["GroupId"] for pair in rule["UserIdGroupPairs"]] == [group["GroupId"]]


def test_aws_node_settings_are_valid_ec2_parameters(aws_cluster: dict[str, Any]) -> None:
    shape = boto3.client("ec2", region_name="us-west-2").meta.service_model.operation_model("RunInstances").input_shape
    for name, kind in aws_cluster["available_node_types"].items():
        # Ray replaces the list of subnets with one of them for each node.
        request = {key: value for key, value in kind["node_config"].items() if key != "SubnetIds"}
        report = ParamValidator().validate({**request, "MinCount": 1, "MaxCount": 1}, shape)
        assert not report.has_errors(), f"{name}: {report.generate_report()}"


def test_aws_nodes_use_the_roles_of_the_stack_and_workers_reach_only_the_bucket(aws_cluster: dict[str, Any]) -> None:
    profiles = {
        profile["InstanceProfileName"]: profile["Roles"][0]["RoleName"]
        for profile in boto3.client("iam").list_instance_profiles()["InstanceProfiles"]
    }
    for name, kind in aws_cluster["available_node_types"].items():
        profile = kind["node_config"]["IamInstanceProfile"]["Name"]
        assert profile == ("mpa-ray-head" if name == "head" else "mpa-ray-worker")
        assert profile in profiles
    worker = boto3.client("iam").list_attached_role_policies(RoleName=profiles["mpa-ray-worker"])["AttachedPolicies"]
    assert len(worker) == 1
    document = boto3.client("iam").get_policy_version(PolicyArn=worker[0]["PolicyArn"], VersionId="v1")
    resources = {json.dumps(statement["Resource"]) for statement in document["PolicyVersion"]["Document"]["Statement"]}
    assert resources == {'"arn:aws:s3:::my-bucket"', '"arn:aws:s3:::my-bucket/*"'}


def test_aws_has_the_expected_groups(aws_cluster: dict[str, Any]) -> None:
    assert groups(aws_cluster["available_node_types"]) == GROUPS
